"""`python -m diffusers_multiguidance` is the `multiguidance` command."""

from .cli import main

main()
