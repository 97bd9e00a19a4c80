"""Command lines of the training scripts: flags, recipes that set them, and errors without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import yaml


def parse_arguments(
    parser: argparse.ArgumentParser, section: str, argv: list[str] | None = None
) -> argparse.Namespace:
    """Parse flags after those that `section` of the `--recipe` file gives.

    A recipe is a YAML mapping with one section per script, whose keys are the script's flags.
    """
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="Gives flags; those on the command line win.")
    argv = sys.argv[1:] if argv is None else argv
    recipe = parser.parse_known_args(argv)[0].recipe
    return parser.parse_args([*(read_recipe(recipe, section) if recipe else []), *argv])


def read_recipe(recipe: Path, section: str) -> list[str]:
    """One section of a recipe as the words of a command line."""
    try:
        content = yaml.safe_load(recipe.read_text())
    except OSError as error:
        raise ValueError(f"`--recipe` is {str(recipe)!r}; expected a readable file ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise ValueError(f"`--recipe` is {str(recipe)!r}; expected valid YAML.") from error
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        raise ValueError(
            f"`--recipe` {recipe} has no section '{section}'; expected a mapping of flags under that name."
        )
    words: list[str] = []
    for flag, value in content[section].items():
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return words


def run_script(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, section: str) -> None:
    """Run a training script; a wrong value ends in one sentence and exit code 2."""
    try:
        main(parse_arguments(parser, section))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
