"""Teachers: the scores of a network or of a fitted head for every sample of some data sets, stored by sample key.

network_teacher  a network's logits, and hints, by extraction
head_teacher     a head's scores on stored features, as logits
logits           how scores become logits
top_k            the largest logits of a row, and one for the rest (pure)
top_k_extract    networks of many classes: logits that are packed as they are computed
outputs          teacher.json over the stored rows, and the summary
run              a teacher: its rows, then teacher.json
teacher          the same, open: the one class that training reads teachers with
ensemble         classes matched by name, and several teachers as one (pure)
verify           stored scores against those that are computed now
"""
