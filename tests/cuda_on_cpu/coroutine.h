/* coroutine.h: stacks that run in turn on one operating-system thread. */
#ifndef SPT_EMULATED_COROUTINE_H
#define SPT_EMULATED_COROUTINE_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__) || defined(SPT_EMULATED_UCONTEXT)
#define SPT_EMULATED_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace emulated {

class Coroutine {
 public:
  Coroutine() = default;
  Coroutine(const Coroutine &) = delete;
  Coroutine &operator=(const Coroutine &) = delete;
  ~Coroutine();

  /* Gives it a stack with a page behind its end that may not be touched; false if memory lacks. */
  bool create(size_t stack_bytes, size_t colour);
  bool holds(const void *data, uintptr_t *low, uintptr_t *high) const {
    *low = (uintptr_t)stack_;
    *high = *low + bytes_;
    return (uintptr_t)data >= *low && (uintptr_t)data < *high;
  }
  /* At the next switch `main` is called, on an empty stack. It must not return. */
  void start(void (*main)());
  /* From the operating-system thread's own stack, or another coroutine, which this one then resumes. */
  static void change(Coroutine *from, Coroutine *to);

 private:
  unsigned char *mapping_ = NULL, *stack_ = NULL; /* stack_: above the page that guards it */
  size_t mapped_ = 0, bytes_ = 0, colour_ = 0;
#if defined(SPT_EMULATED_USES_UCONTEXT)
  ucontext_t context_;
#else
  void *stack_pointer_ = NULL;
#endif
  /* What the address sanitizer wants to know of each stack. */
  void *fake_stack_ = NULL;
  const void *bottom_ = NULL;
  size_t size_ = 0;
  static Coroutine *previous_;
  friend void arrived();
};

/* To be called first thing by `main`. */
void arrived();

}  // namespace emulated

#endif
