# The pool's memory, one a process: the dynamic linker gives every library the first one's object of a GNU unique symbol,
# however they are loaded (RTLD_LOCAL too), and never unmaps that library. The number is the version of the structure.
	.section .bss.tvmcnn_pool_3,"awG",@nobits,tvmcnn_pool_3,comdat
	.balign 64
	.globl tvmcnn_pool_3
	.type tvmcnn_pool_3, @gnu_unique_object
	.size tvmcnn_pool_3, 16384
tvmcnn_pool_3:
	.zero 16384
	.section .note.GNU-stack,"",@progbits
