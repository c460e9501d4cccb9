"""Predict by nnU-Net v1 itself, run by a Python that has nnunet 1.7: MODEL IMAGES OUT [MAPS_OF_THE_STAGE_BEFORE]."""

import os
import sys

for variable in ("nnUNet_raw_data_base", "nnUNet_preprocessed", "RESULTS_FOLDER"):
    os.environ.setdefault(variable, sys.argv[3])

if __name__ == "__main__":
    from nnunet.inference.predict import predict_from_folder

    model, images, out, *maps = sys.argv[1:]
    predict_from_folder(
        model, images, out, [0], False, 1, 1, maps[0] if maps else None, 0, 1, True, mode="normal",
        mixed_precision=False, overwrite_existing=True, step_size=0.5, checkpoint_name="model_final_checkpoint",
    )  # fmt: skip
