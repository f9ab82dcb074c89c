"""What a run would take before it is begun: parameters, memory, bytes sent, time. The formulas are in docs/plan.md.

given       how large samples are, what the GPUs can do
documents   made-up samples for any system
outline     one step on tensors without storage, counted
cost        from that to what a GPU holds, sends and spends
"""
