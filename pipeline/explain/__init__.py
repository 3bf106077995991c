"""Explain the predictions of a trained model: where in an image the evidence is, and which training samples are near.

run               explain images, and write the page
explanation       the explanation of one image
evidence          choose a method for a model, and compute the evidence for some classes
activation_map    exact evidence at each position of a tap's map, for linear heads
gradients         Grad-CAM, or gradient × activation of tokens, through a network
occlusion         evidence by covering parts of the image, for heads that are not linear
linear_head       fold a linear head and the steps before it into one matrix
tap_maps          the map of a tap before its pooling, for one image
heat_map          draw the evidence over an image
near_samples      the nearest training samples, with pictures
mistakes          the test samples that a run predicts wrongly: `icecore wrong`
mistake_evidence  the evidence for mistakes
errors            the worst errors of the best runs with their evidence, for the report
view              the values of an explained image for evidence.html
"""
