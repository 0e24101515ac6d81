// Every schema of the package. csrc/cpu and csrc/cuda hold one file per op, under the op's name.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(shrinknets_fast, m) {
  // fold.cpp, fold.cu; the folded bias is empty where bias is None
  m.def("fold(Tensor weight, Tensor? bias, Tensor theta, ScalarType? dtype=None) -> (Tensor, Tensor)");
  m.def(
      "fold_backward(Tensor grad_weight, Tensor? grad_bias, Tensor weight, Tensor? bias, Tensor theta)"
      " -> (Tensor, Tensor, Tensor)");
  // filter.cpp, filter.cu
  m.def("filter(Tensor x, Tensor theta, int dim=1) -> Tensor");
  m.def("filter_backward(Tensor grad, Tensor x, Tensor theta, int dim=1) -> (Tensor, Tensor)");
  // compact.cpp, compact.cu; moves bytes only: sizes, strides and version counters are the caller's
  m.def("compact_(Tensor(a!)[] tensors, Tensor[] kept, int[] tensor, int[] dim, int[] index) -> ()");
}
