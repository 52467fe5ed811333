"""Other ways to find a mixture, for `fastmix compare`: fitting functions as pure numpy, and the proxy runs that two of them need."""
