"""One diffusion stage: its noise, network, sampling and training. Knows nothing of cascades, command lines or metrics."""
