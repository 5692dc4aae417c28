/* NumPy's C API has one pointer table for the extension; module.c fills it. */
#ifndef SPATILE_BINDING_NUMPY_H
#define SPATILE_BINDING_NUMPY_H

#include "binding.h"

#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL spatile_numpy_api
#ifndef SPT_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#endif
