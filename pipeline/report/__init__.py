"""The report: a leaderboard for the terminal, and a self-contained HTML page.

run          the stage: render the page from page.html, task.html, run.html, errors.html and their parts
views        the values that the templates show
leaderboard  read the evaluations of runs, order them, print them
figures      SVG figures of a method: confusion, calibration, predictions
curves       SVG figures of a run: the metric against labels, inputs and costs
selection    sentences on how the method of a run was chosen
costs        depth, bytes and multiply-adds of an input
trained      compare trained networks with heads on frozen features
students     compare students with their teachers: costs, accuracy, agreement
config       settings: `ReportConfig`
"""
