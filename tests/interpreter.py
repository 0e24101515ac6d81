"""What Triton's interpreter gets wrong, mended for the tests.

It multiplies the bit patterns of bfloat16 and rounds to it towards zero (3.6 and 3.9), and its ranges fail with numpy 2.4 (3.6).
"""

import torch


def mend():
    mend_bfloat16()
    mend_ranges()


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


def mend_ranges():
    """A number is an array with one entry, which int() of numpy 2.4 refuses."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_lang_tensor
