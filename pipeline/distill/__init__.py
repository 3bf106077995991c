"""Distillation: train a student on labels and on the outputs of teachers.

config          settings: `DistillConfig`
losses_config   settings of the losses
tasks           the tasks of a run, each with its teachers
dataset         the samples of the student, with labels and the outputs of teachers
targets         the targets of a batch
student         the student, with projections of the compared layers
online_teacher  a teacher network that runs in every step
feature_pairs   a layer of the student and one of its teacher
kd_losses       the losses of knowledge distillation
loss            the weighted sum of all losses
costs           footprints of student and teachers
sources         the networks and runs of teachers, for recomputing scores
task_probes     the fitted heads that initialise a new classifier
setup           load tasks, teachers and student; build the job of one training set
run             train each training set, predict, write the best student
"""
