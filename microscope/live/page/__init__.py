"""The page of `mmdeploy live`: the newest picture with its answer, to browsers on this machine."""
