"""The stage `finetune`: train a network further, or its last part on stored activations."""
