// Marks the functions that the library shows to those who load it; all others are hidden.
#pragma once

#if defined(_WIN32)
#define MSMAMBA_EXPORT extern "C" __declspec(dllexport)
#else
#define MSMAMBA_EXPORT extern "C" __attribute__((visibility("default")))
#endif
