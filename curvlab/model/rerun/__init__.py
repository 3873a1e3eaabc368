"""Fused modules computed again from known functions, so that each of their linear maps can be read.

``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, their cells and ``nn.MultiheadAttention`` use their weights inside one
fused call.  ``modules.rerun`` computes the same outputs by ``F.linear`` on the module's own parameters;
``replacement.replaced`` puts its graph under the fused outputs.
"""
