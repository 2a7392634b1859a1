"""Wrappers that add random numbers: reproducible for any thread count, device and resume point."""

from fastopt.math import normal, sqrt
from fastopt.schema import NonNegative
from fastopt.wrap import before, behind


@before
def noisy(p, g, *, eta: NonNegative = 0.3, gamma: NonNegative = 0.55, seed=0, t):
    """Annealed gradient noise. Neelakantan et al. 2015, arXiv:1511.06807: normal, of variance eta / t^gamma.

    The paper counts its steps from 0 and writes (1 + t). For the numbers see `fastopt.math.normal`.
    """
    return g + sqrt(eta / t**gamma) * normal(p, seed)


@behind
def langevin(p, g, new, *, temperature=1.0, seed=0, lr):
    """Langevin noise behind any rule: normal, of variance 2 lr temperature. Welling & Teh 2011, ICML, equation 4.

    Around gradient descent it is `fastopt.sgld`; around an adaptive rule, whose steps are of another size, it explores
    but samples no known density (Li et al. 2016, arXiv:1512.07666, correct for that). lr is the rule's.
    """
    return new + sqrt(2 * lr * temperature) * normal(p, seed)
