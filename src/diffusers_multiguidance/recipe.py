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
    """Parse flags over the values that `section` of the `--recipe` file sets.

    A recipe is a YAML mapping with one section per script, whose keys are the script's flags.
    """
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="Sets flags; those given here override it.")
    recipe = parser.parse_known_args(argv)[0].recipe
    if recipe is not None:
        parser.set_defaults(**read_recipe(recipe, section, parser))
    return parser.parse_args(argv)


def read_recipe(recipe: Path, section: str, parser: argparse.ArgumentParser) -> dict[str, object]:
    """The flags that one section of a recipe sets, converted as the parser converts words."""
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
    actions = {action.dest: action for action in parser._actions}
    values: dict[str, object] = {}
    for flag, value in content[section].items():
        if flag not in actions or flag in ("help", "recipe"):
            raise ValueError(f"`--recipe` sets {flag!r} in section '{section}'; expected only flags of this script.")
        convert = actions[flag].type
        if isinstance(value, list):
            values[flag] = [convert(str(item)) if callable(convert) else item for item in value]
        else:
            values[flag] = convert(str(value)) if callable(convert) else value
    return values


def run_script(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, section: str) -> None:
    """Run a training script; a wrong value ends in one sentence and exit code 2."""
    try:
        main(parse_arguments(parser, section))
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
