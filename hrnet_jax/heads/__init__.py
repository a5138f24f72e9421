"""A head makes a result of the backbone's maps; one file for each head.

May import the network (archs, layers, backbone, what they take) and errors.
"""
