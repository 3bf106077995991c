"""Teachers: the logits of a network or of a fitted head for every sample of some data sets, stored by sample key.

network_teacher  extract a network's logits and hints
head_teacher     compute a head's logits on stored features
logits           convert the scores of a head to logits
top_k            pack the largest logits of a row, and one logit for the rest (pure functions)
top_k_extract    extract and pack the logits of networks with many classes
outputs          write teacher.json, and return the summary
run              store the rows of a teacher, then write teacher.json
teacher          read a stored teacher: the class that training uses
ensemble         match classes by name, and average several teachers (pure functions)
verify           compare stored logits with recomputed ones
"""
