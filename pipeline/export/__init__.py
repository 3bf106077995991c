"""Export a trained model: a file from pixels to probabilities, its description, and a script that needs no icecore.

model       the model as one torch module: the backbone up to its taps, and from these to scores
layers      scaling, PCA and linear heads as torch modules
estimators  fitted estimators of scikit-learn as torch modules
trees       decision trees as tensors
graph       the file: ONNX, OpenVINO's IR or a torch program
int8        static quantisation, and what it costs on test rows
samples     images of the run's task, to compare and to calibrate with
check       the comparison of the file with the pipeline's predictions
card        model.json, the model card and the script of an exported model
infer       that script
run         load, write, compare, describe
"""
