// Every schema of the package. csrc/cpu and csrc/cuda hold one file per op, under the op's name.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(shrinknets_fast, m) {
  // fold.cpp, fold.cu; the folded bias is empty where bias is None
  m.def("fold(Tensor weight, Tensor? bias, Tensor theta, ScalarType? dtype=None) -> (Tensor, Tensor)");
  m.def(
      "fold_backward(Tensor grad_weight, Tensor? grad_bias, Tensor weight, Tensor? bias, Tensor theta)"
      " -> (Tensor, Tensor, Tensor)");
  // filter.cpp, filter.cu; with relu the backward's x is the forward's output
  m.def("filter(Tensor x, Tensor theta, int dim=1, bool relu=False) -> Tensor");
  m.def("filter_backward(Tensor grad, Tensor x, Tensor theta, int dim=1, bool relu=False) -> (Tensor, Tensor)");
  // layer_norm.cpp, triton_kernels/layer_norm.py; (y, mean, rstd) of rows, mean empty with rms; what is not wanted is empty
  m.def(
      "layer_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor theta, float eps, bool rms=False)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, Tensor theta,"
      " bool rms=False, bool wants_input=True, bool wants_parameters=True) -> (Tensor, Tensor, Tensor, Tensor)");
  // aliveness.cpp, aliveness.cu: bytes; (dead, not finite) of each group as int64, then the dead masks
  m.def("aliveness(Tensor[] thetas, int[] group) -> Tensor");
  // bury.cpp, bury.cu: zeros where theta <= 0, in theta and in state[i] of thetas[owner[i]]
  m.def("bury_(Tensor(a!)[] thetas, Tensor(b!)[] state, int[] owner) -> ()");
  // compact.cpp, compact.cu; moves bytes only: sizes, strides and version counters are the caller's
  m.def("compact_(Tensor(a!)[] tensors, Tensor[] kept, int[] tensor, int[] dim, int[] index) -> ()");
}
