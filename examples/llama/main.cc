// turnkeep-llama: a conversation with a small model whose KV Turnkeep keeps from turn to
// turn. Prints one row a turn, and checks every turn against computing it from nothing.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "api/client.h"
#include "core/status.h"
#include "llama/batch_run.h"
#include "llama/conversation.h"
#include "llama/tokenizer.h"
#include "store/store.h"

namespace turnkeep::llama {
namespace {

struct Flags {
  std::string model_path;
  std::string random;
  uint64_t seed = 1;
  std::string tokenizer_path;
  std::string kv = "float32";
  std::string keys = "rotated";
  std::string socket_path;
  std::string embedded_dir;
  bool no_store = false;
  std::string session = "llama-demo";
  uint32_t turns = 3;
  uint32_t user_tokens = 120;
  uint32_t answer_tokens = 24;
  uint32_t chunk_tokens = kDefaultChunkTokens;
  uint32_t threads = 2;
  uint32_t gpu_mib = 64;
  std::string state_path;
  bool go_on = false;
  bool no_compare = false;
  bool json = false;
  std::string truncate = "error";
  std::string device = "cpu";
  uint32_t batch = 0;
  uint32_t system_tokens = 512;
};

// What a conversation needs to go on in another process.
struct State {
  std::string model;  // its revision
  uint64_t turns = 0;
  std::vector<uint32_t> tokens;
};

absl::StatusOr<State> ReadState(const std::string& path) {
  std::ifstream file(path);
  if (!file) return ErrnoStatus(errno, fmt::format("open state {}", path));
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  State state;
  try {
    state.model = json.at("model").get<std::string>();
    state.turns = json.at("turns").get<uint64_t>();
    state.tokens = json.at("tokens").get<std::vector<uint32_t>>();
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("state {}: {}", path, error.what());
  }
  return state;
}

// A reader sees the old state or the new one, never half of it.
absl::Status WriteState(const std::string& path, const State& state) {
  const std::string temporary = path + ".new";
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << nlohmann::json{
        {"model", state.model}, {"turns", state.turns}, {"tokens", state.tokens}};
    if (!file.flush()) return ErrnoStatus(errno, fmt::format("write state {}", temporary));
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) return ErrnoStatus(error.value(), fmt::format("rename state to {}", path));
  return absl::OkStatus();
}

// The user's side of the conversation.
class User {
 public:
  User(const Flags& flags, uint32_t vocab, const Tokenizer* tokenizer)
      : flags_(flags), vocab_(vocab), tokenizer_(tokenizer) {}

  // The same for one seed and turn in every process.
  std::vector<uint32_t> Turn(uint64_t turn) const {
    static constexpr const char* kLines[] = {
        "Once upon a time, there was a little girl named Lily.",
        "One day, she found a big red ball in the park.",
        "Her mom said, \"Let's share it with Tom.\"",
        "Then it started to rain, and they ran to the big tree.",
        "A small dog came and wanted to play with them.",
        "In the end, they all went home and had some soup."};
    std::vector<uint32_t> tokens;
    if (tokenizer_ != nullptr) {
      if (turn == 0) tokens.push_back(kBosToken);
      const auto line = tokenizer_->Encode(kLines[turn % std::size(kLines)]);
      tokens.insert(tokens.end(), line.begin(), line.end());
      return tokens;
    }
    std::mt19937_64 random(flags_.seed * 1'000'003 + turn);
    for (uint32_t i = 0; i < flags_.user_tokens; ++i) {
      tokens.push_back(static_cast<uint32_t>(random() % vocab_));
    }
    return tokens;
  }

 private:
  const Flags& flags_;
  const uint32_t vocab_;
  const Tokenizer* const tokenizer_;
};

// The store that the flags ask for. Members in the order in which they depend.
struct StoreHandle {
  std::unique_ptr<Store> embedded;
  std::unique_ptr<KvStore> kv;  // null: no store
};

absl::StatusOr<StoreHandle> OpenStore(const Flags& flags) {
  StoreHandle handle;
  if (flags.no_store) return handle;
  if (!flags.embedded_dir.empty()) {
    TK_ASSIGN_OR_RETURN(handle.embedded, Store::Open({.data_dir = flags.embedded_dir}));
    TK_ASSIGN_OR_RETURN(handle.kv, handle.embedded->ForTenant("default"));
    return handle;
  }
  // A daemon that is away costs hits, not answers.
  TK_ASSIGN_OR_RETURN(handle.kv, Client::Connect({.socket_path = flags.socket_path,
                                                  .client_name = "turnkeep-llama",
                                                  .start_disconnected = true}));
  return handle;
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const Flags& flags) {
  if (!flags.model_path.empty()) return Model::LoadLlama2c(flags.model_path);
  TK_ASSIGN_OR_RETURN(const RandomSpec spec, ParseRandomSpec(flags.random, flags.seed));
  return Model::Random(spec);
}

void PrintHeader() {
  fmt::print("{:>4} {:>8} {:>8} {:>6} {:>6} {:>6} {:>9} {:>10} {:>8} {:>10} {:>10} {:>9}  {}\n",
             "turn", "context", "restored", "host", "disk", "gpu", "computed", "TTFT ms",
             "stall ms", "predicted", "recompute", "tokens/s", "identical");
}

void PrintRow(const Flags& flags, uint64_t turn, const TurnRow& row, const std::string& text) {
  const uint64_t restored = row.pooled_tokens + row.restored_host_tokens + row.restored_disk_tokens;
  if (flags.json) {
    nlohmann::json json{{"turn", turn},
                        {"context_tokens", row.context_tokens},
                        {"restored_tokens", restored},
                        {"restored_gpu_tokens", row.pooled_tokens},
                        {"restored_host_tokens", row.restored_host_tokens},
                        {"restored_disk_tokens", row.restored_disk_tokens},
                        {"computed_tokens", row.computed_tokens},
                        {"ttft_ms", row.ttft_ms},
                        {"stall_ms", row.stall_ms},
                        {"buffer_bytes", row.buffer_bytes},
                        {"answer_tokens_per_s", row.tokens_per_s},
                        {"answer", row.answer}};
    if (row.compared) {
      json["recompute_ttft_ms"] = row.recompute_ttft_ms;
      json["identical"] = row.identical;
    }
    if (row.predicted.has_value()) {
      json["stall_ms_predicted"] = row.predicted->stall_s * 1e3;
      json["buffer_bytes_predicted"] = row.predicted->buffer_bytes;
    }
    if (row.dropped_tokens > 0) json["dropped_tokens"] = row.dropped_tokens;
    if (!row.miss_reason.empty()) json["miss_reason"] = row.miss_reason;
    if (!text.empty()) json["text"] = text;
    fmt::print("{}\n", json.dump());
  } else {
    const auto ms = [](bool there, double value) {
      return there ? fmt::format("{:.1f}", value) : std::string("-");
    };
    fmt::print(
        "{:>4} {:>8} {:>8} {:>6} {:>6} {:>6} {:>9} {:>10.1f} {:>8.1f} {:>10} {:>10} {:>9.1f}  {}\n",
        turn, row.context_tokens, restored, row.restored_host_tokens, row.restored_disk_tokens,
        row.pooled_tokens, row.computed_tokens, row.ttft_ms, row.stall_ms,
        ms(row.predicted.has_value(), row.predicted.has_value() ? row.predicted->stall_s * 1e3 : 0),
        ms(row.compared, row.recompute_ttft_ms), row.tokens_per_s,
        !row.compared   ? "-"
        : row.identical ? "yes"
                        : "NO");
    if (row.dropped_tokens > 0)
      fmt::print("     the oldest {} tokens were dropped\n", row.dropped_tokens);
    if (!text.empty()) fmt::print("     {}\n", text);
  }
  std::fflush(stdout);
}

void PrintBatch(const Flags& flags, const BatchReport& report) {
  if (flags.json) {
    fmt::print("{}\n", nlohmann::json{{"sessions", flags.batch},
                                      {"system_tokens", flags.system_tokens},
                                      {"restored_tokens", report.restored_tokens},
                                      {"system_ttft_ms", report.system_ms},
                                      {"tokens_per_s", report.tokens_per_s},
                                      {"tokens_per_s_one_by_one", report.tokens_per_s_one_by_one},
                                      {"same_answers", report.same_answers}}
                           .dump());
    return;
  }
  fmt::print("system prompt: {} tokens, {} restored, in {:.1f} ms\n", flags.system_tokens,
             report.restored_tokens, report.system_ms);
  fmt::print(
      "{} sessions: {:.0f} tokens/s together, {:.0f} with attention one by one ({:.2f}x); "
      "{} answers are the same\n",
      flags.batch, report.tokens_per_s, report.tokens_per_s_one_by_one,
      report.tokens_per_s / report.tokens_per_s_one_by_one, report.same_answers);
}

// OK also when turns were not identical: `identical` says so.
absl::Status Run(const Flags& flags, bool* identical) {
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, LoadModel(flags));
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                      Engine::Create(model.get(), {.threads = flags.threads}));
  std::unique_ptr<Tokenizer> tokenizer;
  if (!flags.tokenizer_path.empty()) {
    TK_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(flags.tokenizer_path, model->config().vocab));
  }
  TK_ASSIGN_OR_RETURN(StoreHandle store, OpenStore(flags));
  if (flags.batch > 0) {
    TK_ASSIGN_OR_RETURN(const BatchReport report, RunBatch(engine.get(), store.kv.get(),
                                                           {.session = flags.session,
                                                            .sessions = flags.batch,
                                                            .system_tokens = flags.system_tokens,
                                                            .user_tokens = flags.user_tokens,
                                                            .answer_tokens = flags.answer_tokens,
                                                            .chunk_tokens = flags.chunk_tokens,
                                                            .seed = flags.seed}));
    PrintBatch(flags, report);
    store.kv.reset();
    return store.embedded == nullptr ? absl::OkStatus() : store.embedded->Close(absl::Seconds(30));
  }
  const KvDevice::Options sizes{.pool_bytes = uint64_t{flags.gpu_mib} * kMiB};
  KvSide side = HostSide({.memory_bytes = sizes.pool_bytes + sizes.buffer_bytes});
  if (flags.device == "cuda") {
    TK_ASSIGN_OR_RETURN(side, CudaSide());
    fmt::print(stderr, "turnkeep-llama: KV and attention on {}\n", side.device->Description());
  }
  KvDevice device(sizes, std::move(side));
  Conversation::Options options{
      .session = flags.session,
      .dtype = flags.kv == "bfloat16" ? DType::kBFloat16 : DType::kFloat32,
      .raw_keys = flags.keys == "raw",
      .answer_tokens = flags.answer_tokens,
      .chunk_tokens = flags.chunk_tokens,
      .compare = !flags.no_compare,
      .truncate_oldest_half = flags.truncate == "oldest-half",
      .device = &device};
  options.log = [](const std::string& line) { fmt::print(stderr, "turnkeep-llama: {}\n", line); };
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<Conversation> conversation,
                      Conversation::Create(engine.get(), store.kv.get(), options));
  State state{.model = model->revision()};
  if (flags.go_on) {
    TK_ASSIGN_OR_RETURN(state, ReadState(flags.state_path));
    if (state.model != model->revision()) {
      return InvalidArgument("state {}: it is of another model ({}, this one is {})",
                             flags.state_path, state.model, model->revision());
    }
    conversation->set_history(state.tokens);
  }
  const User user(flags, model->config().vocab, tokenizer.get());
  if (!flags.json) PrintHeader();
  for (uint32_t i = 0; i < flags.turns; ++i) {
    const std::vector<uint32_t> tokens = user.Turn(state.turns);
    TK_ASSIGN_OR_RETURN(const TurnRow row, conversation->Turn(tokens));
    ++state.turns;
    state.tokens = conversation->history();
    PrintRow(flags, state.turns, row, tokenizer != nullptr ? tokenizer->Decode(row.answer) : "");
    if (row.compared && !row.identical) *identical = false;
    if (!flags.state_path.empty()) TK_RETURN_IF_ERROR(WriteState(flags.state_path, state));
  }
  if (store.embedded != nullptr) {
    store.kv.reset();
    return store.embedded->Close(absl::Seconds(30));
  }
  return absl::OkStatus();
}

void DeclareFlags(CLI::App* app, Flags* f) {
  auto* model = app->add_option("--model", f->model_path, "llama2.c checkpoint");
  app->add_option("--random", f->random,
                  "random model: 15M, 42M, 110M or dim=…,layers=…,heads=…,kv_heads=…,hidden=…,"
                  "vocab=…,context=… (default 42M)")
      ->excludes(model);
  app->add_option("--seed", f->seed, "of the random model and of the user's random tokens")
      ->capture_default_str();
  app->add_option("--tokenizer", f->tokenizer_path,
                  "llama2.c tokenizer; with it the turns are text, without it random tokens");
  app->add_option("--kv", f->kv, "type of stored KV")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  app->add_option("--keys", f->keys, "store keys before or after RoPE")
      ->check(CLI::IsMember({"raw", "rotated"}))
      ->capture_default_str();
  auto* where = app->add_option_group("store", "where KV is kept between turns");
  where->add_option("--socket", f->socket_path, "turnkeepd's Unix socket");
  where->add_option("--embedded", f->embedded_dir, "a store in this process, with this directory");
  where->add_flag("--no-store", f->no_store, "nowhere: every turn is computed");
  where->require_option(1);
  app->add_option("--session", f->session)->capture_default_str();
  app->add_option("--turns", f->turns)->check(CLI::Range(1, 10000))->capture_default_str();
  app->add_option("--user-tokens", f->user_tokens, "random tokens a turn")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_option("--answer-tokens", f->answer_tokens, "tokens of an answer")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_option("--chunk-tokens", f->chunk_tokens, "chunk length of the layout")
      ->check(CLI::Range(kMinChunkTokens, kMaxChunkTokens))
      ->capture_default_str();
  app->add_option("--threads", f->threads)
      ->check(CLI::Range(1u, kMaxThreads))
      ->capture_default_str();
  app->add_option("--gpu-mib", f->gpu_mib,
                  "device memory for chunks that stay hot between turns (0: none)")
      ->check(CLI::Range(0u, 1u << 20))
      ->capture_default_str();
  auto* state =
      app->add_option("--state", f->state_path, "file that keeps the conversation's tokens");
  app->add_flag("--continue", f->go_on, "go on with the conversation in --state")->needs(state);
  app->add_option("--truncate", f->truncate, "when the context overflows: an error, or oldest-half")
      ->check(CLI::IsMember({"error", "oldest-half"}))
      ->capture_default_str();
  auto* device = app->add_option("--device", f->device,
                                 "where the KV pages lie and attention runs: cpu, or cuda (the "
                                 "rest is computed on the CPU; heads of 64, 128 or 256 dims)")
                     ->check(CLI::IsMember({"cpu", "cuda"}))
                     ->capture_default_str();
  app->add_option("--batch", f->batch,
                  "instead of a conversation: so many sessions under one system prompt, decoded "
                  "together through the auto planner (float32)")
      ->excludes(device)
      ->check(CLI::Range(1u, static_cast<uint32_t>(Engine::kMaxBatchRows)));
  app->add_option("--system-tokens", f->system_tokens, "of the batch's system prompt")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app->add_flag("--no-compare", f->no_compare, "do not compute every turn a second time");
  app->add_flag("--json", f->json, "one JSON object a turn");
}

}  // namespace
}  // namespace turnkeep::llama

// 0: done, all turns identical; 1: a turn differed; 2: an error.
int main(int argc, char** argv) {
  turnkeep::llama::Flags flags;
  CLI::App app("A conversation with a small model whose KV Turnkeep keeps from turn to turn");
  turnkeep::llama::DeclareFlags(&app, &flags);
  CLI11_PARSE(app, argc, argv);
  if (flags.model_path.empty() && flags.random.empty()) flags.random = "42M";
  bool identical = true;
  const absl::Status status = turnkeep::llama::Run(flags, &identical);
  if (!status.ok()) {
    fmt::print(stderr, "turnkeep-llama: {}\n", turnkeep::MessageOf(status));
    return 2;
  }
  return identical ? 0 : 1;
}
