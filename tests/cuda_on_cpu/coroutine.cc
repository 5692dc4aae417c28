/* coroutine.cc: the switch from one stack to another. */
#include "coroutine.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

Coroutine *Coroutine::previous_;

#if !defined(SPT_EMULATED_USES_UCONTEXT)
/* What a call must preserve goes onto the old stack, and is taken from the new one. */
extern "C" __attribute__((visibility("hidden"))) void spt_emulated_switch(void **save, void *load);
__asm__(
    ".text\n"
    ".globl spt_emulated_switch\n"
    ".hidden spt_emulated_switch\n"
    ".type spt_emulated_switch, @function\n"
    "spt_emulated_switch:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size spt_emulated_switch, .-spt_emulated_switch\n");
#endif

Coroutine::~Coroutine() {
  if (mapping_ != NULL) {
    munmap(mapping_, mapped_);
  }
}

bool Coroutine::create(size_t stack_bytes, size_t colour) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  bytes_ = (stack_bytes + page - 1) / page * page;
  mapped_ = bytes_ + page;
  void *mapping = mmap(NULL, mapped_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    return false;
  }
  mapping_ = (unsigned char *)mapping;
  mprotect(mapping_, page, PROT_NONE);
  stack_ = mapping_ + page;
  colour_ = colour;
  bottom_ = stack_;
  size_ = bytes_;
  return true;
}

void Coroutine::start(void (*main)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, bytes_); /* frames that were left and never returned from */
  fake_stack_ = NULL;
#endif
#if defined(SPT_EMULATED_USES_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = bytes_ - colour_;
  context_.uc_link = NULL;
  makecontext(&context_, main, 0);
#else
  /* Tops that are a power of two apart would share the same few lines of the cache. */
  uintptr_t *top = (uintptr_t *)(((uintptr_t)stack_ + bytes_ - colour_) & ~(uintptr_t)63);
  *--top =
      0; /* the address that main would return to, so that the stack is aligned as after a call */
  *--top = (uintptr_t)main;
  for (int i = 0; i < 6; i++) {
    *--top = 0;
  }
  stack_pointer_ = top;
#endif
}

void Coroutine::change(Coroutine *from, Coroutine *to) {
  previous_ = from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->fake_stack_, to->bottom_, to->size_);
#endif
#if defined(SPT_EMULATED_USES_UCONTEXT)
  swapcontext(&from->context_, &to->context_);
#else
  spt_emulated_switch(&from->stack_pointer_, to->stack_pointer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  Coroutine *left = previous_;
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(from->fake_stack_, &bottom, &size);
  left->bottom_ = bottom;
  left->size_ = size;
#endif
}

void arrived() {
#if defined(__SANITIZE_ADDRESS__)
  Coroutine *left = Coroutine::previous_;
  __sanitizer_finish_switch_fiber(NULL, &left->bottom_, &left->size_);
#endif
}

}  // namespace emulated
