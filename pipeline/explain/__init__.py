"""Explain what a trained model predicts of an image: where its evidence lies, and which training samples are near.

linear_head       the weights of a linear head, folded through the steps before it
tap_maps          the map of a tap before its pooling, for one image
activation_map    exact evidence at each position of a tap's map, for linear heads
gradients         Grad-CAM, and gradient times activation of tokens, through a network
occlusion         evidence by covering parts of the image, for heads that are not linear
evidence          choose one of the three, and compute the evidence for some classes
pictures          evidence over an image, as pictures inside a page
near_samples      the nearest training samples, with their pictures
mistakes          the test samples that a run predicts wrongly: `icecore wrong`
mistake_evidence  the evidence for these
errors            the worst errors of the best runs with it, for the report
view              an explained image as the values of evidence.html
run               explain some images, and write the page
"""
