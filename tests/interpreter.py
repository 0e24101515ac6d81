"""Triton's interpreter (seen with 3.6 and 3.9) multiplies the bit patterns of bfloat16, and rounds to it towards zero."""

import torch


def mend_bfloat16():
    """Products convert bfloat16 first, and conversions round to the nearest, as they do on a GPU."""
    try:
        import triton.language as tl
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
    except ImportError:
        return
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(self, a, b, *rest)

    def cast_impl(self, src, dst_type):
        pair = (src.dtype.scalar, dst_type.scalar)
        if pair == (tl.float32, tl.bfloat16):
            bits = torch.from_numpy(src.data.copy()).bfloat16().view(torch.uint16).numpy()
        elif pair == (tl.bfloat16, tl.float32):
            bits = torch.from_numpy(src.data.copy()).view(torch.bfloat16).float().numpy()
        else:
            return cast(self, src, dst_type)
        return TensorHandle(bits, dst_type.scalar)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
