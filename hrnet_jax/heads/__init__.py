"""What stands on the backbone and makes its maps a result: one file a head.

May import the network (archs, layers, backbone, what they take) and errors.
"""
