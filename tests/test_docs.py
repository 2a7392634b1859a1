"""Every Python example of the README and the docs runs, in order, each page in a process of its own names."""

import importlib.util
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_examples_of_a_page_run(page, capsys):
    text = page.read_text()
    if not re.search(r"^```python\n", text, re.M):
        assert page.name in {"rules.md", "benchmarks.md", "promises.md", "how_it_works.md"}, "a page without an example"
        return
    if "\n# needs jax\n" in text:
        pytest.importorskip("jax", reason="the example needs JAX, which is not installed")
    # one text with the prose blanked out: line numbers of errors, and the source of rules, are those of the page
    kept, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            kept.append("")
        else:
            kept.append(line if inside else "")
    import linecache

    code = "\n".join(kept) + "\n"
    linecache.cache[str(page)] = (len(code), None, code.splitlines(True), str(page))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(code, str(page), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("program", "page"), [("rules", "rules.md"), ("wrappers", "one_pass.md")])
def test_generated_pages_are_what_the_library_says(program, page):
    spec = importlib.util.spec_from_file_location(f"docs_{program}", ROOT / "docs" / f"{program}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / page).read_text() == module.text(), f"run `python docs/{program}.py`"


def test_the_comments_beside_the_first_examples_are_true(capsys):
    text = (ROOT / "docs" / "start.md").read_text()
    first = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    exec(compile(first, "start.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"^print\(.*?\)\s*# (?:.*: )?(.+)$", first, re.M)
    assert printed == said
