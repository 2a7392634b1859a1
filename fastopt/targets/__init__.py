"""One module per kind of processor: how a lowered rule becomes a kernel there, and how the kernel is started."""
