"""Train an evaluator of clean images: which class of a label column (say, which digit), or how much of a value.

    accelerate launch training/train_evaluator.py --recipe training/recipes/digits.yaml
    accelerate launch training/train_evaluator.py --train_data_dir faces --attribute factor_Smiling --output_dir out

Writes it to `<output_dir>/evaluator`, with its figures on the held-out images in `training.json`.
"""

from diffusers_multiguidance.utils.exits import exit_codes

if __name__ == "__main__":
    with exit_codes("train_evaluator.py"):  # also while it imports, which takes seconds
        from diffusers_multiguidance.training.evaluator import EvaluatorSettings, train_evaluator
        from diffusers_multiguidance.training.recipe import run_script

        run_script(train_evaluator, EvaluatorSettings, section="train_evaluator")
