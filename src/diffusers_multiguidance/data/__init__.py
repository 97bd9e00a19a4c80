"""Sources of images, one file each; one way to load them, and one to bring them to a network."""
