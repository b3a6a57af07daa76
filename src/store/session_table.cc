#include "store/session_table.h"

#include <utility>

#include "core/check.h"

namespace turnkeep {

Session* SessionTable::Find(uint16_t tenant, std::string_view name) {
  if (tenant >= by_name_.size()) return nullptr;
  const auto it = by_name_[tenant].find(name);
  return it == by_name_[tenant].end() ? nullptr : it->second;
}

Session* SessionTable::FindNumber(uint64_t number) {
  const auto it = by_number_.find(number);
  return it == by_number_.end() ? nullptr : it->second.get();
}

Session* SessionTable::Create(uint16_t tenant, const std::string& name, uint64_t number) {
  if (tenant >= by_name_.size()) by_name_.resize(tenant + 1);
  auto session = std::make_unique<Session>();
  session->number = number;
  session->tenant = tenant;
  session->name = name;
  Session* raw = session.get();
  TK_CHECK(by_number_.emplace(number, std::move(session)).second);
  TK_CHECK(by_name_[tenant].emplace(name, raw).second);
  return raw;
}

void SessionTable::Rename(Session* session, const std::string& name) {
  by_name_[session->tenant].erase(session->name);
  session->name = name;
  TK_CHECK(by_name_[session->tenant].emplace(name, session).second);
}

void SessionTable::Erase(Session* session) {
  by_name_[session->tenant].erase(session->name);
  by_number_.erase(session->number);
}

void SessionTable::UpdateExpiry(Session* session) {
  if (session->ttl_s == 0) return;
  const int64_t expires = session->expires_unix_s();
  if (session->queued_expiry_unix_s != 0 && session->queued_expiry_unix_s <= expires) return;
  session->queued_expiry_unix_s = expires;
  expiry_.emplace(expires, session->number);
}

Session* SessionTable::NextExpired(int64_t now_unix_s) {
  while (!expiry_.empty() && expiry_.begin()->first <= now_unix_s) {
    const auto [when, number] = *expiry_.begin();
    expiry_.erase(expiry_.begin());
    Session* session = FindNumber(number);
    if (session == nullptr || session->queued_expiry_unix_s != when) continue;
    session->queued_expiry_unix_s = 0;
    if (session->ttl_s == 0) continue;
    if (session->expires_unix_s() <= now_unix_s) return session;
    UpdateExpiry(session);
  }
  return nullptr;
}

const SessionTable::ByName& SessionTable::OfTenant(uint16_t tenant) const {
  static const ByName* const kNone = new ByName;
  return tenant < by_name_.size() ? by_name_[tenant] : *kNone;
}

}  // namespace turnkeep
