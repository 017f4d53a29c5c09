"""A CPU emulator for compiled PTX: does the code that Triton generated compute the right thing?

PTX text is parsed (`parser`), each instruction becomes a C++ statement (`translator`), and a small runtime
(`runtime.h`) runs the threads of a block as coroutines that switch at barriers and warp-wide instructions.
It checks what a GPU would not tell: bounds, alignment, writes to inputs, races in shared and global
memory, deadlock, lanes that meet at different instructions, and values read before they were written
(shared memory and registers start as NaN). `emulator` compiles the result and launches it on NumPy arrays.

Only the opcodes that the project's kernels contain are known; any other is refused. Not modelled: the
step from PTX to machine code, time, and caches. Its results are "PTX executed in a CPU emulator", never
"run on a GPU".
"""
