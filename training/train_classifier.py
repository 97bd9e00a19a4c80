"""Train the classifiers of noisy images that guide, for any DDPM: of train_unet.py, or a stock one of the Hub.

    accelerate launch training/train_classifier.py --recipe training/recipes/circles-32.yaml
    accelerate launch training/train_classifier.py --pipeline google/ddpm-celebahq-256 --resolution 256 \\
        --train_data_dir runs/faces --attributes Smiling --output_dir runs/smile

Writes each classifier to `<output_dir>/member-<k>` and the pipeline with all of them to `<output_dir>/pipeline`. An
interrupted run goes on where it was with `--resume_from_checkpoint latest`, past the members that are done.
Classifiers of other attributes that the pipeline has already stay in it.
"""

from diffusers_multiguidance.utils.exits import exit_codes

if __name__ == "__main__":
    with exit_codes("train_classifier.py"):  # also while it imports, which takes seconds
        from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
        from diffusers_multiguidance.training.recipe import run_script

        run_script(train_classifiers, ClassifierSettings, section="train_classifier")
