// turnkeep export and turnkeep import: one session, one file.
#include <memory>
#include <string>

#include "commands.h"
#include "core/session_file.h"
#include "core/status.h"
#include "file_stream.h"
#include "human.h"
#include "progress.h"

namespace turnkeep {
namespace {

void AddFileFields(const std::string& path, const SessionFileInfo& info, int64_t now_unix_s,
                   Fields* fields) {
  fields->Add("file", fmt::format("{}, {}", path, HumanBytes(info.file_bytes)));
  fields->Add("session", info.session);
  fields->Add("model", info.model);
  fields->Add("tokens", HumanCount(info.token_count));
  fields->Add("chunks", HumanCount(info.chunk_count));
  fields->Add("exported", HumanAgo(info.exported_unix_s, now_unix_s));
  fields->Add("sha256", info.sha256_hex);
}

struct ExportArguments {
  std::string session;
  std::string file;
  bool force = false;
};

absl::StatusOr<ExitCode> RunExport(Invocation& invocation, const ExportArguments& arguments) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<FileSink> sink,
                      FileSink::Create(arguments.file, arguments.force));
  absl::StatusOr<SessionFileInfo> info;
  {
    Progress progress(invocation.environment(), "export");
    info = ExportSession(
        *store, arguments.session, *sink,
        {.now_unix_s = invocation.now_unix_s(),
         .progress = [&](uint64_t done, uint64_t total) { progress.Update(done, total); }});
  }
  TK_RETURN_IF_ERROR(info.status());
  TK_RETURN_IF_ERROR(sink->Finish());
  if (invocation.json()) {
    Json json = ToJson(*info);
    json["file"] = arguments.file;
    invocation.WriteJson(json);
    return ExitCode::kOk;
  }
  Fields fields;
  AddFileFields(arguments.file, *info, invocation.now_unix_s(), &fields);
  invocation.Write(fields.Render(invocation.style()));
  return ExitCode::kOk;
}

struct ImportArguments {
  std::string file;
  std::string name;
  bool check = false;
};

absl::StatusOr<ExitCode> RunCheck(Invocation& invocation, const ImportArguments& arguments,
                                  FileSource& source) {
  absl::StatusOr<SessionFileInfo> info;
  {
    Progress progress(invocation.environment(), "check");
    info = CheckSessionFile(source,
                            [&](uint64_t done, uint64_t total) { progress.Update(done, total); });
  }
  TK_RETURN_IF_ERROR(info.status());
  if (invocation.json()) {
    Json json = ToJson(*info);
    json["file"] = arguments.file;
    invocation.WriteJson(json);
    return ExitCode::kOk;
  }
  Fields fields;
  AddFileFields(arguments.file, *info, invocation.now_unix_s(), &fields);
  fields.Add("verdict", "whole");
  invocation.Write(fields.Render(invocation.style()));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunImport(Invocation& invocation, const ImportArguments& arguments) {
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> source, FileSource::Open(arguments.file));
  if (arguments.check) return RunCheck(invocation, arguments, *source);
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  absl::StatusOr<ImportedSession> done;
  {
    Progress progress(invocation.environment(), "import");
    done = ImportSession(*store, *source,
                         {.session = arguments.name, .progress = [&](uint64_t at, uint64_t total) {
                            progress.Update(at, total);
                          }});
  }
  TK_RETURN_IF_ERROR(done.status());
  if (invocation.json()) {
    Json json = ToJson(done->file);
    json["file"] = arguments.file;
    json["imported_as"] = done->session;
    json["generation"] = done->commit.generation;
    json["new_chunks"] = done->commit.new_chunks;
    json["new_bytes"] = done->commit.new_bytes;
    invocation.WriteJson(json);
    return ExitCode::kOk;
  }
  Fields fields;
  AddFileFields(arguments.file, done->file, invocation.now_unix_s(), &fields);
  fields.Add("imported as", done->session);
  fields.Add("new", fmt::format("{} chunks, {}", HumanCount(done->commit.new_chunks),
                                HumanBytes(done->commit.new_bytes)));
  invocation.Write(fields.Render(invocation.style()));
  return ExitCode::kOk;
}

}  // namespace

void AddFileCommands(CommandLine& line) {
  CLI::App* out =
      line.Add("export", "Write one session to one checked file",
               {"turnkeep export alice alice.tks", "turnkeep export alice alice.tks --force"});
  const auto exported = std::make_shared<ExportArguments>();
  out->add_option("session", exported->session, "The session")->type_name("SESSION")->required();
  out->add_option("file", exported->file, "The file")->type_name("FILE")->required();
  out->add_flag("--force", exported->force, "Replace the file if it exists");
  out->callback([&line, exported] {
    line.body = [exported](Invocation& invocation) { return RunExport(invocation, *exported); };
  });

  CLI::App* in = line.Add("import",
                          "Store the session of a file. The whole file is checked before the "
                          "session\nbecomes visible; exits with 1 when the file is damaged.",
                          {"turnkeep import alice.tks", "turnkeep import alice.tks --as bob",
                           "turnkeep import alice.tks --check"});
  const auto imported = std::make_shared<ImportArguments>();
  in->add_option("file", imported->file, "The file")->type_name("FILE")->required();
  in->add_option("--as", imported->name, "The session's name here (default: the one in the file)")
      ->type_name("NAME");
  in->add_flag("--check", imported->check, "Only check the file; needs no daemon");
  in->callback([&line, imported] {
    line.body = [imported](Invocation& invocation) { return RunImport(invocation, *imported); };
  });
}

}  // namespace turnkeep
