"""Speed against peers and against the memory: `python -m benchmarks.step`, `python -m benchmarks.report`, NOTES.md."""
