"""Many processes that train or serve one model: the mesh, how the model is sharded on it, and its collectives.

No layer of a model knows a rank: sharding is declared here, beside the model, and attached by hooks.
"""
