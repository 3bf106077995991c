"""Export a trained model: a file that maps pixels to probabilities, its description, and a script without icecore.

run         load the model, write the file, compare it with the pipeline, describe it
model       the model as a torch module: the backbone up to its taps, and from the taps to scores
layers      scaling, PCA and linear heads as torch modules
estimators  fitted scikit-learn estimators as torch modules
trees       decision trees as tensors
graph       write and run the file: ONNX, OpenVINO IR or a torch program
int8        static quantisation, and its cost on test rows
samples     images of the run's task, for the comparison and for calibration
check       compare the file with the pipeline's predictions
card        model.json, the model card and the script of an exported model
infer       the template of the script
"""
