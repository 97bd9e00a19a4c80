"""Generate images over the whole range of a pipeline's attributes, and give them values: a data set of the middle.

    python training/generate.py --pipeline pipelines/circles-32 --attributes position \\
        --extremes runs/circles-32/data --num_images 1000 --output_dir runs/circles-32/generated
    accelerate launch training/train_classifier.py --recipe training/recipes/circles-32-exact.yaml

Classifiers that learn these pseudo-labels (`train_classifier.py --pseudo_labels`) know the middle much better than
those that learnt the two ends. They never see a real image of the middle, but the evaluator is used: a mode of its
own. With `--evaluators neighbours` none is used, and no calibration either: neighbours among the generated images tell
which are nearer to which end. Images that get no value are left out and counted. The set fills the range evenly, with
extremes at the ends; `--keep_all` keeps every image of both.
"""

from diffusers_multiguidance.utils.exits import exit_codes

if __name__ == "__main__":
    with exit_codes("generate.py"):  # also while it imports, which takes seconds
        from diffusers_multiguidance.curation.pseudo_labels import GenerateSettings, generate_dataset
        from diffusers_multiguidance.training.recipe import run_script

        run_script(generate_dataset, GenerateSettings, section="generate")
