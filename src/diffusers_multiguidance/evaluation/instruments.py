"""What looks at the images of a report: evaluators, which are the pipeline's own unless named, and an extractor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..models.evaluator import ImageClassifier
from .evaluators import Evaluator, TrainedEvaluator, find_evaluator, load_evaluator
from .extractors import Extractor, evaluator_extractor, load_extractor
from .samples import is_pipeline, read_record


@dataclass
class Instruments:
    """What looks at the images of a report.

    Attributes:
        evaluator, second_evaluator: names of `evaluate` and `evaluate_second`.
        extract: the extractor that was named, or else the evaluator's own where it is a network.
    """

    evaluator: str
    evaluate: Evaluator
    second_evaluator: str | None
    evaluate_second: Evaluator | None
    extract: Extractor | None
    is_extractor_named: bool

    @property
    def channels(self) -> int | None:
        """3 where all of them want colour, as photographs that happen to be grey are files without any; else None."""
        networks = [
            getattr(self.evaluate, "network", None),
            getattr(self.evaluate_second, "network", None),
            self.extract and self.extract.network,
        ]
        wanted = {network.config["in_channels"] for network in networks if isinstance(network, ImageClassifier)}
        return 3 if wanted == {3} else None


def load_instruments(
    samples: str | Path,
    attribute: str,
    evaluator: str | Path | None,
    second_attribute: str | None,
    second_evaluator: str | Path | None,
    extractor: str | Path | None,
) -> Instruments:
    """Load what is named, and what the pipeline of the samples carries in its place.

    Raises:
        ValueError: for what can't be loaded or found.
    """
    name = str(evaluator or find_evaluator(_pipeline_of(samples, "evaluator"), attribute))
    evaluate = load_evaluator(name)
    second_name = evaluate_second = None
    if second_attribute is not None:
        argument = "second_evaluator"
        second_name = str(
            second_evaluator or find_evaluator(_pipeline_of(samples, argument), second_attribute, argument)
        )
        evaluate_second = load_evaluator(second_name, argument)
    is_own = extractor is None or Path(extractor).resolve() == Path(name).resolve()
    if isinstance(evaluate, TrainedEvaluator) and is_own:
        extract: Extractor | None = evaluator_extractor(evaluate.network)  # the same network, which is then asked once
    else:
        extract = None if extractor is None else load_extractor(extractor)
    return Instruments(name, evaluate, second_name, evaluate_second, extract, extractor is not None)


def _pipeline_of(samples: str | Path, argument: str) -> str:
    """The pipeline whose evaluator may be taken, where `argument` names none."""
    if is_pipeline(samples):
        return str(samples)
    pipeline = read_record(samples).get("pipeline")
    if pipeline is None:
        raise ValueError(
            f"`{argument}` is missing, and no sample.json lies beside the images of {str(samples)!r} to name a "
            f"pipeline; expected `--{argument.replace('_', '-')}`."
        )
    return str(pipeline)
