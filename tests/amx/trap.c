/* Runs AMX's machine code on processors without AMX: each of its instructions raises SIGILL there, and
 * the handler decodes it, does what amx_emulation.h says and goes on behind it. So what is proven is
 * the release build's own code: the numbers of registers, the order of operands, the configuration in
 * memory. */
#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>

#define SPATILE_EMULATE_AMX
#include "../../csrc/cpu/amx_tile.h"

static struct sigaction before;
static int64_t trapped;

static uint64_t general(const ucontext_t *context, int number) {
  static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
  return (uint64_t)context->uc_mcontext.gregs[place[number]];
}

/* A VEX instruction of three bytes' prefix, as all of AMX's are. */
typedef struct instruction {
  int prefix, opcode, vvvv, mod, reg, rm;
  uint64_t address, index; /* of the operand in memory: without and with the scaled index */
  int length;
} instruction;

static bool decode(const ucontext_t *context, instruction *i) {
  uint64_t at = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
  const uint8_t *code = (const uint8_t *)at;
  bool w = code[2] & 0x80, l = code[2] & 4;
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || w || l) {
    return false;
  }
  int high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8;
  *i = (instruction){.prefix = code[2] & 3,
                     .opcode = code[3],
                     .vvvv = ~(code[2] >> 3) & 15,
                     .mod = code[4] >> 6,
                     .reg = code[4] >> 3 & 7,
                     .rm = code[4] & 7,
                     .length = 5};
  if (i->mod == 3) {
    return true;
  }
  int base = i->rm;
  bool no_base = i->mod == 0 && base == 5, relative = no_base;
  if (i->rm == 4) {
    int sib = code[i->length++], index = (sib >> 3 & 7) | high_index;
    i->index = index == 4 ? 0 : general(context, index) << (sib >> 6);
    base = sib & 7;
    no_base = i->mod == 0 && base == 5;
    relative = false;
  }
  int32_t displacement = 0;
  if (i->mod == 1) {
    displacement = (int8_t)code[i->length++];
  } else if (i->mod == 2 || no_base) {
    memcpy(&displacement, code + i->length, 4);
    i->length += 4;
  }
  i->address = (uint64_t)(int64_t)displacement;
  if (relative) {
    i->address += at + (uint64_t)i->length;
  } else if (!no_base) {
    i->address += general(context, base | high_base);
  }
  return true;
}

enum { NONE, P66, PF3, PF2 };

static bool run(const instruction *i) {
  int what = i->opcode << 2 | i->prefix;
  if (what == (0x49 << 2 | NONE) && i->mod != 3) {
    amx_configure((const amx_config *)(i->address + i->index));
  } else if (what == (0x49 << 2 | NONE) && i->reg == 0 && i->rm == 0) {
    amx_release();
  } else if (what == (0x49 << 2 | PF2) && i->mod == 3) {
    amx_zero(i->reg);
  } else if (what == (0x4b << 2 | PF2) && i->mod != 3 && i->rm == 4) {
    amx_load(i->reg, (const void *)i->address, (int64_t)i->index);
  } else if (what == (0x4b << 2 | PF3) && i->mod != 3 && i->rm == 4) {
    amx_store(i->reg, (void *)i->address, (int64_t)i->index);
  } else if (what == (0x5c << 2 | PF3) && i->mod == 3) {
    amx_dot_bf16(i->reg, i->rm, i->vvvv);
  } else {
    return false;
  }
  return true;
}

static void on_illegal(int number, siginfo_t *info, void *given) {
  (void)info;
  ucontext_t *context = given;
  instruction i;
  if (!decode(context, &i) || !run(&i)) {
    sigaction(number, &before, NULL); /* not AMX's: it comes again, to whom it came before */
    return;
  }
  __atomic_add_fetch(&trapped, 1, __ATOMIC_RELAXED);
  context->uc_mcontext.gregs[REG_RIP] += i.length;
}

/* From here on the process runs AMX's instructions, on every thread. */
__attribute__((visibility("default"))) void install_trap(void) {
  struct sigaction trap = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO};
  sigemptyset(&trap.sa_mask);
  sigaction(SIGILL, &trap, &before);
}

__attribute__((visibility("default"))) void remove_trap(void) { sigaction(SIGILL, &before, NULL); }

/* Instructions that were run so since the last call. */
__attribute__((visibility("default"))) int64_t trapped_instructions(void) {
  return __atomic_exchange_n(&trapped, 0, __ATOMIC_RELAXED);
}
