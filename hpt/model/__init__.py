"""The policy and the models beside it: loading, the fused loss on its head, reference model, critic."""
