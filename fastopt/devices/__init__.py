"""Where arrays live: the host, or a CUDA device. Everything about memory that an optimizer does differently there."""
