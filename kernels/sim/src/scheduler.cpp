// Cores as fibers: one runs at a time, and the next is drawn at every point where cores meet or look at each other.
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <exception>

#include "launch.h"
#include "sim/machine.h"

namespace sim {

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr uint64_t kIdlePolls = 2000;  // of a core that waits for what nobody will do

struct Cancelled {};

struct Fiber {
    ucontext_t context{};
    char* stack = nullptr;
    sigjmp_buf begin;
    bool is_started = false;
};

ucontext_t g_scheduler;
bool g_is_cancelled = false;

void OnCrash(int, siginfo_t*, void*) {
    if (Core* running = machine().core) {
        siglongjmp(static_cast<Fiber*>(running->fiber)->begin, 1);
    }
    std::signal(SIGSEGV, SIG_DFL);
}

// Ctrl-C ends the launch at the next call of any core; a second one the process.
void OnInterrupt(int signal) {
    if (machine().is_interrupted) {
        std::signal(signal, SIG_DFL);
        raise(signal);
    }
    machine().is_interrupted = 1;
}

void Body() {
    Core& running = core();
    Fiber& fiber = *static_cast<Fiber*>(running.fiber);
    if (sigsetjmp(fiber.begin, 1) == 0) {
        try {
            Rank& rank = machine().ranks[running.rank];
            CallKernel(rank);
            running.where = Nowhere("end of the kernel");
            if (!rank.is_key_matched && (rank.has_asked_key || rank.tiling_key != 0)) {
                Fail("Tiling", Nowhere(), "expected a branch for tiling key %llu, the kernel has none", static_cast<unsigned long long>(rank.tiling_key));
            }
            running.CheckEnd();
        } catch (const Violation& violation) {
            if (machine().failure.empty()) {
                machine().failure = violation.text;
            }
        } catch (const Cancelled&) {
        }
    } else {
        try {
            Fail("Global", running.where, "the kernel used a pointer to memory that is not there (behind a tensor's end, or null), after this call");
        } catch (const Violation& violation) {
            machine().failure = violation.text;
        }
    }
    running.state = CoreState::Done;
    swapcontext(&fiber.context, &g_scheduler);
}

std::string Hang(const char* what) {
    std::string text = what;
    for (const auto& each : machine().cores) {
        if (each->state != CoreState::Done) {
            text += "\n  " + each->Describe();
        }
    }
    const auto ended = std::count_if(machine().cores.begin(), machine().cores.end(), [](const auto& each) { return each->state == CoreState::Done; });
    return text + "\n  " + std::to_string(ended) + " of " + std::to_string(machine().cores.size()) + " cores have ended";
}

}  // namespace

void Core::GiveUp() const {
    const std::string stem = "[" + std::string(machine().ranks[rank].stem) + "] ";
    if (machine().is_interrupted) {
        throw Violation{stem + Hang("interrupted [Interrupted]")};
    }
    throw Violation{stem + Hang(("endless: rank " + std::to_string(rank) + ", core " + std::to_string(block) + " has made more than " +
                                 std::to_string(machine().most_calls) + " calls [Endless]")
                                    .c_str())};
}

void Machine::Yield() {
    Core& running = *core;
    swapcontext(&static_cast<Fiber*>(running.fiber)->context, &g_scheduler);
    if (g_is_cancelled) {
        throw Cancelled{};
    }
}

void Machine::Block(const Where& here, std::string what, std::function<bool()> is_ready) {
    core->At(here);
    core->waits_for = std::move(what);
    core->is_ready = std::move(is_ready);
    core->state = CoreState::Blocked;
    Yield();
}

void Machine::Poll(const Where& here, const void* address) {
    core->At(here);
    ++polls;
    for (HostStore& store : host_stores) {
        if (store.polls && polls >= store.polls) {
            Allocation& target = Find(here, store.address, store.bytes.size(), "writes");
            const uint64_t begin = static_cast<uint64_t>(store.address - target.base);
            auto first = target.Cut(begin, begin + store.bytes.size());
            target.segments.erase(std::next(first), target.segments.lower_bound(begin + store.bytes.size()));
            first->second = Segment{begin + store.bytes.size(), true, ++stamp};
            std::copy(store.bytes.begin(), store.bytes.end(), store.address);
            store.polls = 0;
        }
    }
    if (stamp != seen_stamp) {
        seen_stamp = stamp;
        for (auto& each : cores) {
            each->idle_polls = 0;
            each->polled.clear();
        }
    }
    // who looks at something new is getting on
    core->idle_polls = core->polled.insert(address).second ? 0 : core->idle_polls + 1;
    Yield();
}

void Machine::SyncAll(const Where& here, bool is_vector_only) {
    if (!is_vector_only) {
        Fail("Launch", here, "SyncAll<false> waits for cube cores, and this launch has none: it hangs");
    }
    Rank& rank = ranks[core->rank];
    Core& running = *core;
    running.At(here);
    const uint64_t round = rank.rounds;
    ++rank.arrived;
    const int all = static_cast<int>(rank.cores.size());
    if (rank.arrived < all) {
        Block(here, "SyncAll, " + std::to_string(rank.arrived) + " of " + std::to_string(all) + " cores are there", [&rank, round] { return rank.rounds != round; });
        return;
    }
    // the last one: all know what each core's scalar unit and MTE3 had done; other pipes need a barrier before
    auto view = std::make_shared<View>(cores.size() * kPipes, 0);
    double latest = 0;
    for (Core* each : rank.cores) {
        each->DrainAll(here);
        Knowledge leaving = each->known[static_cast<int>(Pipe::MTE3)];
        leaving.own[static_cast<int>(Pipe::MTE3)] = each->clock[static_cast<int>(Pipe::MTE3)];
        Knowledge scalar = each->known[static_cast<int>(Pipe::S)];
        Join(leaving, scalar);
        for (int p = 0; p < kPipes; ++p) {
            uint32_t& entry = (*view)[each->number * kPipes + p];
            entry = std::max(entry, leaving.own[p]);
        }
        if (leaving.others) {
            for (size_t i = 0; i < view->size(); ++i) {
                (*view)[i] = std::max((*view)[i], (*leaving.others)[i]);
            }
        }
        latest = std::max({latest, each->done[static_cast<int>(Pipe::MTE3)], each->time[static_cast<int>(Pipe::S)]});
    }
    for (Core* each : rank.cores) {
        for (int p = 0; p < kPipes; ++p) {
            Join(each->known[p], Knowledge{{}, view});
            each->time[p] = std::max(each->time[p], latest + rates.sync_all);
        }
    }
    rank.arrived = 0;
    ++rank.rounds;
    Yield();
}

// Mode 0: the flag is there for everybody as soon as all cores have set it.
void Machine::SetCrossCore(const Where& here, Pipe pipe, int id) {
    if (id < 0 || id >= kCrossCoreIds) {
        Fail("Sync4", here, "expected a flag of 0 to %d, got %d. The others are SyncAll's and the framework's", kCrossCoreIds - 1, id);
    }
    Rank& rank = ranks[core->rank];
    Rank::CrossCore& flag = rank.cross_core[id];
    core->At(here);
    core->DrainAll(here);
    flag.sets.resize(rank.cores.size());
    const uint64_t round = flag.sets[core->block]++;
    if (flag.sets[core->block] - core->cross_core_waits[id] > kCrossCoreLimit) {
        Fail("Sync4", here, "flag %d is set %d times and nobody has waited: its counter holds %d", id, kCrossCoreLimit + 1, kCrossCoreLimit);
    }
    if (flag.rounds.size() <= round) {
        flag.rounds.push_back(std::make_shared<View>(cores.size() * kPipes, 0));
        flag.times.push_back(0);
    }
    View& view = *flag.rounds[round];
    Knowledge leaving = core->known[static_cast<int>(pipe)];
    leaving.own[static_cast<int>(pipe)] = core->clock[static_cast<int>(pipe)];
    for (int p = 0; p < kPipes; ++p) {
        uint32_t& entry = view[core->number * kPipes + p];
        entry = std::max(entry, leaving.own[p]);
    }
    for (size_t i = 0; leaving.others && i < view.size(); ++i) {
        view[i] = std::max(view[i], (*leaving.others)[i]);
    }
    flag.times[round] = std::max(flag.times[round], std::max(core->done[static_cast<int>(pipe)], core->time[static_cast<int>(Pipe::S)]));
    flag.complete = *std::min_element(flag.sets.begin(), flag.sets.end());
}

void Machine::WaitCrossCore(const Where& here, int id) {
    if (id < 0 || id >= kCrossCoreIds) {
        Fail("Sync4", here, "expected a flag of 0 to %d, got %d. The others are SyncAll's and the framework's", kCrossCoreIds - 1, id);
    }
    Rank::CrossCore& flag = ranks[core->rank].cross_core[id];
    Core& running = *core;
    const uint64_t round = running.cross_core_waits[id]++;
    if (flag.complete <= round) {
        Block(here, "flag " + std::to_string(id) + " of all cores", [&flag, round] { return flag.complete > round; });
    }
    for (int p = 0; p < kPipes; ++p) {
        Join(running.known[p], Knowledge{{}, flag.rounds[round]});
        running.time[p] = std::max(running.time[p], flag.times[round] + rates.cross_core);
    }
}

void Machine::Run() {
    g_is_cancelled = false;
    struct sigaction action {
    }, before_segv{}, before_bus{}, before_interrupt{};
    action.sa_sigaction = OnCrash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    static char signal_stack[64 * 1024];
    stack_t alternative{}, before_stack{};
    alternative.ss_sp = signal_stack;
    alternative.ss_size = sizeof(signal_stack);
    sigaltstack(&alternative, &before_stack);
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    action.sa_sigaction = nullptr;
    action.sa_handler = OnInterrupt;
    action.sa_flags = 0;
    sigaction(SIGINT, &action, &before_interrupt);
    if (before_interrupt.sa_handler == SIG_IGN) {  // nohup: whoever started this wants it to go on
        sigaction(SIGINT, &before_interrupt, nullptr);
    }

    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<std::unique_ptr<Fiber>> fibers;
    for (auto& each : cores) {
        auto fiber = std::make_unique<Fiber>();
        fiber->stack = static_cast<char*>(mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        mprotect(fiber->stack, page, PROT_NONE);
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack + page;
        fiber->context.uc_stack.ss_size = kStack;
        fiber->context.uc_link = nullptr;
        makecontext(&fiber->context, Body, 0);
        each->fiber = fiber.get();
        fibers.push_back(std::move(fiber));
    }
    std::vector<Core*> able;
    while (true) {
        able.clear();
        bool is_done = true;
        bool is_idle = std::none_of(host_stores.begin(), host_stores.end(), [](const HostStore& store) { return store.polls > 0; });
        for (auto& each : cores) {
            if (each->state == CoreState::Blocked && each->is_ready()) {
                each->state = CoreState::Ready;
            }
            if (each->state == CoreState::Ready) {
                able.push_back(each.get());
                is_idle &= each->idle_polls > kIdlePolls;
            }
            is_done &= each->state == CoreState::Done;
        }
        if (is_done) {
            break;
        }
        if (able.empty() || is_idle) {
            if (failure.empty()) {
                failure = "[" + std::string(ranks[0].stem) + "] " +
                          Hang(able.empty() ? "deadlock: every core waits [Deadlock]" : "every core polls for what nobody does [Deadlock]");
            }
        }
        if (!failure.empty()) {
            g_is_cancelled = true;  // those that have begun unwind; the others never begin
            for (auto& each : cores) {
                auto& fiber = *static_cast<Fiber*>(each->fiber);
                if (each->state != CoreState::Done && fiber.is_started) {
                    core = each.get();
                    swapcontext(&g_scheduler, &fiber.context);
                }
                each->state = CoreState::Done;
            }
            break;
        }
        core = able[random() % able.size()];
        auto& fiber = *static_cast<Fiber*>(core->fiber);
        fiber.is_started = true;
        swapcontext(&g_scheduler, &fiber.context);
    }
    core = nullptr;
    for (auto& fiber : fibers) {
        munmap(fiber->stack, kStack + page);
    }
    sigaction(SIGSEGV, &before_segv, nullptr);
    sigaction(SIGBUS, &before_bus, nullptr);
    sigaction(SIGINT, &before_interrupt, nullptr);
    sigaltstack(&before_stack, nullptr);
}

}  // namespace sim
