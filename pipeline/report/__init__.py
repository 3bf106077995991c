"""The report: a leaderboard for the terminal, and one self-contained HTML page.

leaderboard  reads what evaluation wrote, orders it, prints it
figures      SVG figures of one method: confusion, calibration, predictions
curves       SVG figures of all methods of a run: against labels, inputs and costs
selection    how the method of a run was chosen, in words
costs        depth, bytes and multiply-adds of an input
trained      trained networks and heads on frozen features, compared
students     students and their teachers, compared: costs, accuracy, agreement
run          the page, from page.html, run.html and errors.html, and of a task task.html, students.html, trained.html,
             pairs.html and audit.html
"""
