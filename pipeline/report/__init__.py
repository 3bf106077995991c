"""The report: a leaderboard for the terminal, and one self-contained HTML page.

leaderboard  reads what evaluation wrote, orders it, prints it
figures      SVG figures of one method: confusion, calibration, predictions
curves       SVG figures of all methods of a run: against labels, inputs and costs
chosen       what chose the method of a run, in words
costs        depth, bytes and multiply-adds of an input
trained      networks that were trained beside heads on frozen features
students     students beside their teachers: costs, accuracy, agreement
run          the page, from page.html and run.html, and of a task task.html, students.html, trained.html, pairs.html
             and audit.html
"""
