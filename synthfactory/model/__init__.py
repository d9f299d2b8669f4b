"""The networks (SiT, VAE, ViT encoder), the interpolant, and the folders that weights live in."""
