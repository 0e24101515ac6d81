"""The ops as Python sees them: fakes for tracing, autograd, and one public function each."""
