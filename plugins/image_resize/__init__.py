"""The resize of `msmamba.resize`, compiled: the same bits as that definition, vectors and threads inside.

``cpu`` has the same signature as the reference, and does resize and normalisation in one pass. It is no
operator of the network: only the picture's transform (`msmamba.images.Transform`) asks for it.
"""
