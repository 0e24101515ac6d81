// How this build was made, readable at run time: `python -m shrinknets_fast info`.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "How this build of shrinknets_fast was made.";
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["torch_version"] = SN_TORCH_VERSION;
        info["cuda_version"] = SN_CUDA_VERSION;  // empty: built without CUDA
        info["architectures"] = SN_ARCHITECTURES;
        info["compiler"] = SN_COMPILER;
        info["compiler_flags"] = SN_FLAGS;
        info["cuda_flags"] = SN_CUDA_FLAGS;
        return info;
      },
      "Versions, architectures and flags of this build, as a dict of strings.");
}
