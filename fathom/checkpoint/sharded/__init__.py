"""Checkpoints that several processes save and load together, each its own part of every tensor.

``saving`` writes them and ``loading`` reads them into sharded tensors; the store opens them in one process as it opens
any other, with the same names, shapes and types. All ranks write into one folder of a shared file system.

torch.distributed.checkpoint plans: what each rank holds, what several hold alike, and, when loading, which parts of
which pieces a rank needs. It runs on a process group by collectives of its own and raises what one rank raises on
all. Storage is Fathom's, through its public ``StorageWriter`` and ``StorageReader``: what comes with it pickles its
metadata (``FileSystemWriter``), and its ``HuggingFaceStorageWriter``, which writes safetensors without pickle, serves
half. It writes no index and no checksum and publishes nothing atomically; every piece is copied into memory and
serialised there whole; a rank's two pieces of one tensor would overwrite each other; and the reader maps every file
of the folder and takes the largest offset it meets for a tensor's shape, so that a missing file goes unnoticed.
"""
