"""How far a device may round otherwise than the CPU does in the same dtype.

A factor of what the CPU's own rounding makes of the same work: other orders of summation, fused
multiply-adds and functions good to a few units in the last place stay within 3. In float32 the next
worse thing, products of bfloat16 or TF32, is a thousand times off: there is room for more.
"""

MARGIN = {"float32": 16.0, "bfloat16": 6.0}  # by dtype
