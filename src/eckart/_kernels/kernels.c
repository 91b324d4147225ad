/* placeholder so that the build can be tried */
__attribute__((visibility("default"))) int eckart_abi(void) { return 1; }
